"""What the published code computes, step by step, written anew: what the benchmarks compare with.

Modules take the weights of the shipped ones (same parameter names), so that both can be checked against each other.
"""
