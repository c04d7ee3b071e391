"""From tensors or lists to results: engines, quantisation, journals, chips, clusters."""
