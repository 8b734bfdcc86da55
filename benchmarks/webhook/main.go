// The least that a token webhook in Go can do: net/http with mTLS and HTTP/1.1, one answer for every review, which is read
// but not looked at. What remains of a request's time through an API server is the API server's own.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	address := flag.String("address", "", "host:port")
	certificate := flag.String("certificate", "", "its certificate")
	key := flag.String("key", "", "its key")
	ca := flag.String("ca", "", "CA that signed the clients' certificates")
	reply := flag.String("reply", "", "file with the answer")
	flag.Parse()

	answer, clients := read(*reply), x509.NewCertPool()
	clients.AppendCertsFromPEM(read(*ca))
	server := &http.Server{
		Addr: *address,
		TLSConfig: &tls.Config{
			ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
		Handler: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			io.Copy(io.Discard, request.Body)
			writer.Header().Set("Content-Type", "application/json")
			writer.Write(answer)
		}),
	}
	log.Fatal(server.ListenAndServeTLS(*certificate, *key))
}

func read(path string) []byte {
	content, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	return content
}
