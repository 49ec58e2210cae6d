"""What the retriever says over HTTP, beside `/search`: other servers' forms, MCP, errors, limits."""
