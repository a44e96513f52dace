"""HTTP client of OpenAI-compatible servers: retries, outages, the least loaded endpoint first."""
