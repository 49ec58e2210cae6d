"""`research study`: several seeds and controls, run one after the other and reported from their files."""
