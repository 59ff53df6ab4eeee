//go:build race

package queue

func init() { underRace = true }
