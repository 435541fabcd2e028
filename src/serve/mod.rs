//! Serving: the repository of models, the queue in front of each and the workers behind it.
