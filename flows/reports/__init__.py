"""Reports: run page, model card, comparison of runs, plots."""
