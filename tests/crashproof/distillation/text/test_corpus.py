from crashproof.distillation.text.corpus import builtin_documents, text_hash


def test_the_text_inside_python_is_prose_and_the_same_each_time() -> None:
    documents = builtin_documents()

    assert sum(map(len, documents)) > 100_000
    assert text_hash(documents) == text_hash(builtin_documents())


def test_where_one_document_ends_is_part_of_the_hash() -> None:
    assert text_hash(["ab", "c"]) != text_hash(["a", "bc"])
