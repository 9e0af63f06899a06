"""The server: a policy behind OpenAI's interface, on the engine's one running session."""
