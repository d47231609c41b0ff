"""Prefect deployments of the flow: registering, submitting, serving, and local servers."""
