"""What a run says of itself: its id, its stages and where their time went, and its log."""
