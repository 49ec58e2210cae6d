"""`research study`: several seeds and ablations, run one after another and reported from their files."""
