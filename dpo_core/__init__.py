"""Direct Preference Optimization: data, rendering, training and evaluation, without any orchestration."""
