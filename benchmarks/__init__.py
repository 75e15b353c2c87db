"""How fast the service is, beside a raw socket and beside the service that anyone would write.

`python -m benchmarks http` measures servers, `python -m benchmarks ops` the operators alone,
`python -m benchmarks report` writes the tables again from the results that lie there.
"""
