"""Vectors to passages: FAISS or Milvus, BM25, fusion, the passage store."""
