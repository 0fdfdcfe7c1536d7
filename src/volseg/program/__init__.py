"""What is done: the steps of a rank, as one list that is run, planned and measured."""
