"""`knarr bench`: every claim about speed or memory as a figure beside a peer of the same interleaved run."""
