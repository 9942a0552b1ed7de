"""What a training records: its log, the loss of held-out videos, and a picture of both."""
