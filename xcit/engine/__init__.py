"""How it is learnt: the loop and what it needs. Nothing here knows a model, a data set or a task by name."""
