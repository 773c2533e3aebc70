"""Places where a cache can be: a folder, a bucket, a web server, the hub; one protocol, retries, failures."""
