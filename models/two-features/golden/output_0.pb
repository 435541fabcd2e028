BprobabilityJ9q5
rW9Në?þ?Jþ?