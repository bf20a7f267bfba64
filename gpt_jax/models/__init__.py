"""The decoder: what a member of the family is, its parameters, its mathematics."""
