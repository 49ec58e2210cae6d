"""The HTTP interface of the retriever besides `/search`: other servers' formats, MCP, errors, limits."""
