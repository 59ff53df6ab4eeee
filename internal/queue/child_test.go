package queue

const childEnv = "QUEUE_TEST_CHILD"

func childMain() {}
