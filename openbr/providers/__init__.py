"""Room 5: one adapter for each wire format. `base` knows no adapter; app.py lists them."""
