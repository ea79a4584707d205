"""Tables: reads, cuts and writes .parquet, .jsonl and .csv files, and fills a prompt with the cells of a row."""
