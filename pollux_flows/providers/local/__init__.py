"""Any server on your own machines that speaks OpenAI's chat completions."""
