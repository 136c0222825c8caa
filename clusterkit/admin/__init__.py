"""What operators look at. Nothing of it is imported unless an application asks for it."""
