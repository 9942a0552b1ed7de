"""A page in the browser that generates and compares videos: another front of the requests of the command line."""
