"""How /critique, /refine and /feedback are answered, from the checked request to the stored record."""
