"""Models of other tools made into run folders, and run folders into theirs."""
