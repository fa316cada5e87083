"""Claims about speed, one file a claim: `python -m bench [NAME…]`, or `make bench`."""
