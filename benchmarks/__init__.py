"""Side-by-side measurements. Every figure in the docs is printed by one of these modules."""
