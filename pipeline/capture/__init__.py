"""The steps of stage one: what the cache is, which part is next, answers in their order, writing behind the teacher."""
