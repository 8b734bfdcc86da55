// The load generator of the benchmarks: sends reviews over kept connections (TLS, HTTP/1.1), one at a time on each, checks
// every answer, and prints what it saw as one line of JSON. The same program, with the same code, drives every server.
//
// A connection's requests are rendered beforehand and its answers read by net/http's own parser, so that the client takes
// little of the processor that the server is measured on.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// item is one review, and what its answer must say.
type item struct {
	Body    json.RawMessage `json:"body"`
	User    string          `json:"user"` // empty: the token must be refused
	UID     string          `json:"uid"`
	Allowed *bool           `json:"allowed"` // set for an access review
	Path    string          `json:"path"`    // where to, if not to the webhook
	Token   string          `json:"token"`   // the API server's: who it says that this is

	request []byte
	good    atomic.Pointer[[]byte] // an answer to this very item that was parsed and found right
}

type verdict int

const (
	right   verdict = iota
	refused         // a valid token was not accepted
	wrong           // another user, a token that should be refused, or the other verdict
	failed          // no review came back
)

// judge tells whether an answer is right. Answers equal to one that was judged before are not parsed again.
func (i *item) judge(code int, answer []byte) verdict {
	if i.Token != "" && code == http.StatusUnauthorized {
		return refused
	}
	if good := i.good.Load(); good != nil && bytes.Equal(*good, answer) {
		return right
	}
	var review struct {
		Status *struct {
			Authenticated bool
			Allowed       bool
			User          struct{ Username, UID string }
			UserInfo      struct{ Username, UID string }
		}
	}
	if json.Unmarshal(answer, &review) != nil || review.Status == nil {
		return failed
	}
	status := review.Status
	if i.Token != "" {
		status.Authenticated, status.User = true, status.UserInfo
	}
	switch {
	case i.Allowed != nil:
		if status.Allowed != *i.Allowed {
			return wrong
		}
	case i.User != "" && !status.Authenticated:
		return refused
	case i.User != "" && (status.User.Username != i.User || status.User.UID != i.UID), i.User == "" && status.Authenticated:
		return wrong
	}
	i.good.Store(&answer)
	return right
}

type connection struct {
	address string
	tls     *tls.Config
	open    *tls.Conn
	reader  *bufio.Reader
}

// ask sends a review and gives its answer; after an error the next call connects anew.
func (c *connection) ask(request []byte) (code int, answer []byte, err error) {
	if c.open == nil {
		if c.open, err = tls.Dial("tcp", c.address, c.tls); err != nil {
			c.open = nil
			return 0, nil, err
		}
		c.reader = bufio.NewReader(c.open)
	}
	closing := true
	defer func() {
		if closing {
			c.open.Close()
			c.open = nil
		}
	}()
	c.open.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err = c.open.Write(request); err != nil {
		return 0, nil, err
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return 0, nil, err
	}
	answer, err = io.ReadAll(response.Body)
	closing = err != nil || response.Close
	return response.StatusCode, answer, err
}

func main() {
	address := flag.String("address", "", "host:port")
	ca := flag.String("ca", "", "CA that signed the server's certificate")
	certificate := flag.String("certificate", "", "client certificate; none: no mTLS")
	key := flag.String("key", "", "its key")
	work := flag.String("work", "", "file with one item a line")
	first := flag.Int("first", 0, "item to begin with")
	once := flag.Bool("once", false, "use no item twice: stop when they are used up")
	connections := flag.Int("connections", 1, "connections at a time")
	duration := flag.Duration("duration", time.Hour, "how long")
	count := flag.Int64("count", 1<<62, "how many reviews at most")
	flag.Parse()

	configuration := &tls.Config{RootCAs: x509.NewCertPool(), NextProtos: []string{"http/1.1"}}
	configuration.RootCAs.AppendCertsFromPEM(read(*ca))
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		check(err)
		configuration.Certificates = []tls.Certificate{pair}
	}
	items := load(*work, *address)

	var next, answered, total atomic.Int64
	var tally [4]atomic.Int64
	next.Store(int64(*first))
	take := func() *item {
		number := next.Add(1) - 1
		if *once && number >= int64(len(items)) {
			return nil
		}
		return items[number%int64(len(items))]
	}
	latencies := make([][]time.Duration, *connections)
	var warm, done sync.WaitGroup
	begin := make(chan struct{})
	var start time.Time
	for number := range *connections {
		warm.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			c := &connection{address: *address, tls: configuration}
			one := func() bool {
				i := take()
				if i == nil {
					return false
				}
				v := failed
				if code, answer, err := c.ask(i.request); err == nil {
					v = i.judge(code, answer)
				} else {
					log.Print(err)
				}
				tally[v].Add(1)
				total.Add(1)
				return true
			}
			one() // handshakes are not what is measured
			warm.Done()
			<-begin
			for time.Since(start) < *duration && answered.Add(1) <= *count {
				sent := time.Now()
				if !one() {
					break
				}
				latencies[number] = append(latencies[number], time.Since(sent))
			}
		}()
	}
	warm.Wait()
	start = time.Now()
	close(begin)
	done.Wait()
	elapsed := time.Since(start)

	all := slices.Concat(latencies...)
	slices.Sort(all)
	quantile := func(q float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return float64(all[int(q*float64(len(all)-1))].Microseconds()) / 1000
	}
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"rate": float64(len(all)) / elapsed.Seconds(), "p50": quantile(0.5), "p99": quantile(0.99), "seconds": elapsed.Seconds(),
		"total": total.Load(), "refused": tally[refused].Load(), "wrong": tally[wrong].Load(), "failed": tally[failed].Load(),
	}))
}

func load(path, address string) []*item {
	var items []*item
	for line := range bytes.Lines(read(path)) {
		i := &item{Path: "/webhook"}
		check(json.Unmarshal(line, i))
		authorization := ""
		if i.Token != "" {
			authorization = "Authorization: Bearer " + i.Token + "\r\n"
		}
		i.request = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: kube-apiserver/benchmark\r\n%s"+
			"Content-Length: %d\r\nAccept: application/json, */*\r\nContent-Type: application/json\r\n\r\n%s",
			i.Path, address, authorization, len(i.Body), i.Body)
		items = append(items, i)
	}
	return items
}

func read(path string) []byte {
	content, err := os.ReadFile(path)
	check(err)
	return content
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
