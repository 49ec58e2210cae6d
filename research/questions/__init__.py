"""Question sets: the built-in one, and JSONL files of the same shape."""

from research.questions.model import Hop, Question, question_from_dict, read_questions, write_questions

__all__ = ["Hop", "Question", "question_from_dict", "read_questions", "write_questions"]
