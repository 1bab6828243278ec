def exchange(weight, gram, mask, frozen, budget):
    raise NotImplementedError
