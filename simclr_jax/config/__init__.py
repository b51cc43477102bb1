"""Rules for configs, what they leave open, and what makes two of them alike."""
