"""A server: models behind HTTP, as OpenAI's clients and others expect of one."""
