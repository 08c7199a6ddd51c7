package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

var (
	seen     = &Seen{keys: map[string]bool{}}
	provider sync.Mutex
	refuse   = users("PUSH_REFUSE")
	gone     = users("PUSH_GONE")
	stall    = users("PUSH_STALL")
)

func users(variable string) []string { return strings.Split(os.Getenv(variable), ",") }

// send stands for your provider. An error means: later.
func send(ctx context.Context, js jetstream.JetStream, push Push) error {
	if slices.Contains(stall, push.User) {
		<-ctx.Done()
		return ctx.Err()
	}
	provider.Lock()
	defer provider.Unlock()
	if at := slices.Index(refuse, push.User); at >= 0 {
		refuse = slices.Delete(refuse, at, at+1)
		return errors.New("refused")
	}
	if slices.Contains(gone, push.User) { // nothing to try again: the devices are told when they connect
		for _, device := range push.Devices {
			payload := map[string]any{"device_id": device, "reason": "app_uninstalled", "detected_at": time.Now().Unix()}
			body, _ := json.Marshal(map[string]any{"payload": payload})
			if _, err := js.Publish(ctx, "notification.push.token_invalid."+push.User, body); err != nil {
				return err
			}
		}
		return nil
	}
	line, err := json.Marshal(push)
	fmt.Println(string(line))
	return err
}

// Seen is what was pushed. Here the newest of this process; where several processes run, a store they share, for a day.
type Seen struct {
	mutex sync.Mutex
	keys  map[string]bool
	order []string
}

const seenMax = 100_000

func (s *Seen) has(key string) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.keys[key]
}

func (s *Seen) add(key string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.keys[key] {
		return
	}
	s.keys[key] = true
	if s.order = append(s.order, key); len(s.order) > seenMax {
		delete(s.keys, s.order[0])
		s.order = s.order[1:]
	}
}
