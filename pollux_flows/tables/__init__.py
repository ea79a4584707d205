"""Tables: read .parquet, .jsonl and .csv files in chunks, write them, and fill prompts with the cells of rows."""
