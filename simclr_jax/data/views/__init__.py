"""What a view is, and how it is made on hosts and on accelerators."""
