"""`python -m vidsparse.cli`, for where the console script is not on the path."""

from vidsparse.cli import main

main()
