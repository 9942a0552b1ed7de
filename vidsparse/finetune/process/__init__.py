"""The processes of a training: what accelerate may set, signals, and the lock of a folder."""
