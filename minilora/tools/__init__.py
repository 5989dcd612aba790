"""What runs minilora: the command line, sweeps over processes, and what is kept between runs."""
