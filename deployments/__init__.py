"""The ways in which a team runs the flow."""
