// A push service in small: it takes what Fanfare hands off (docs/offline-push.md) and prints what it would send.
//
//	go run . nats://127.0.0.1:4222
//
// What stands for your provider takes user ids, separated by commas, from the environment: PUSH_REFUSE (their first push is
// refused), PUSH_GONE (their tokens are gone), PUSH_STALL (pushing to them never ends).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	stream  = "OFFLINE_PUSH"
	retry   = time.Second // yours: 5 s and more, growing with the number of deliveries
	cancels = time.Minute // no phone rings for longer
)

// Record is what Fanfare hands off, as far as it is used here.
type Record struct {
	ID          string                          `json:"notification_id"`
	Type        string                          `json:"notification_type"`
	Kind        string                          `json:"kind"`
	Reason      string                          `json:"reason"`
	CollapseID  string                          `json:"collapse_id"`
	Cancel      string                          `json:"cancel"`
	Users       []string                        `json:"users"`
	Devices     struct{ Only, Except []string } `json:"devices"`
	PublishedMs int64                           `json:"published_at_ms"`
	ExpiresMs   int64                           `json:"expires_at_ms"`
	Payload     map[string]any                  `json:"payload"`
}

// Push is what a provider would get.
type Push struct {
	Kind       string   `json:"kind"`
	Type       string   `json:"type,omitempty"`
	User       string   `json:"user"`
	Devices    []string `json:"devices"`
	ID         string   `json:"notification_id"`
	CollapseID string   `json:"collapse_id"`
	Cancel     string   `json:"cancel,omitempty"`
}

func devicesOf(user string) []string { return []string{"d1", "d2"} } // what your database knows

func read(kind string, body []byte) (r Record, err error) {
	if err = json.Unmarshal(body, &r); err != nil {
		return r, err
	}
	named := r.Cancel != "" || r.Type != "" && r.ExpiresMs > 0
	if r.Kind != kind || r.ID == "" || r.CollapseID == "" || len(r.Users) == 0 || r.PublishedMs == 0 || r.Payload == nil || !named {
		return r, fmt.Errorf("not a record of kind %s, or a field is missing", kind)
	}
	return r, nil
}

func (r *Record) expired() bool {
	if r.Cancel != "" {
		return time.Since(time.UnixMilli(r.PublishedMs)) >= cancels
	}
	return time.Now().UnixMilli() >= r.ExpiresMs
}

func (r *Record) meant(user string) []string {
	return slices.DeleteFunc(devicesOf(user), func(device string) bool {
		return r.Devices.Only != nil && !slices.Contains(r.Devices.Only, device) || slices.Contains(r.Devices.Except, device)
	})
}

// pushAll pushes to everybody who has not got it yet.
func pushAll(ctx context.Context, js jetstream.JetStream, msg jetstream.Msg, r *Record) error {
	var refused error
	for at, user := range r.Users {
		if at%100 == 99 {
			msg.InProgress() // AckWait begins anew
		}
		push := Push{r.Kind, r.Type, user, r.meant(user), r.ID, r.CollapseID, r.Cancel}
		key := r.ID + " " + r.Kind + " " + user
		if r.Cancel != "" {
			key += " " + r.Reason            // a second cancel has another reason
			seen.add(r.ID + " ring " + user) // a ring that comes only now is over
		}
		if seen.has(key) || len(push.Devices) == 0 {
			continue
		}
		if err := send(ctx, js, push); err != nil {
			refused = err
			continue
		}
		seen.add(key)
	}
	return refused
}

// lane is one kind, with a consumer of its own: a ring waits for no alert.
func lane(ctx context.Context, js jetstream.JetStream, kind string) error {
	consumer, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: "push_" + kind, FilterSubject: "push.offline." + kind, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: 30 * time.Second, MaxAckPending: 1000, MaxDeliver: -1,
	})
	for err == nil && ctx.Err() == nil {
		var msg jetstream.Msg
		msg, err = consumer.Next(jetstream.FetchContext(ctx))
		if errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
			err = nil
			continue
		}
		if err != nil {
			break
		}
		r, wrong := read(kind, msg.Data())
		switch {
		case wrong != nil:
			log.Print("a record that nobody can push: ", wrong)
			err = msg.Term()
		case r.expired():
			err = msg.Ack()
		case pushAll(ctx, js, msg, &r) == nil:
			err = msg.Ack()
		case ctx.Err() != nil:
			err = msg.Nak() // another process takes it at once
		default:
			err = msg.NakWithDelay(retry)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func main() {
	url := nats.DefaultURL
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	client, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(client)
	if err != nil {
		log.Fatal(err)
	}
	var lanes sync.WaitGroup
	for _, kind := range []string{"ring", "alert", "silent"} {
		lanes.Go(func() {
			if err := lane(ctx, js, kind); err != nil {
				log.Fatal(kind, ": ", err) // the supervisor starts it again
			}
		})
	}
	lanes.Wait()
	if err := client.FlushTimeout(5 * time.Second); err != nil {
		log.Print("the last acknowledgements may be lost: ", err)
	}
	client.Close()
}
