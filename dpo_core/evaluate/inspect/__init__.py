"""inspect-ai: model provider, plugin, running tasks, errors."""
