"""What people read of a run: its report, its model card, and the way to the Hub."""
