"""Preference datasets: where pairs come from, and what is wrong with them."""
