"""From a file to a tensor: frames, strictly decoded, the clips of a list, windows of a long video, the lists of data sets."""
