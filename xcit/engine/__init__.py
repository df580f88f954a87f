"""How it is learnt: the loop and what it needs. It knows no model, no data set, no view and no task by name."""
