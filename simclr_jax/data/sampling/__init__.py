"""Which images a step sees, and the random numbers of their views."""
